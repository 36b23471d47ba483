import pytest

from var_jax.perf import hlo

# As the TPU compiler prints them: a scan over 5 layers whose body gathers a weight, multiplies, and
# reduces; arrays with S(1) lie on the chip.
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%take_layer (p.0: bf16[5,8,64], p.1: s32[]) -> bf16[1,8,64] {
  %p.0 = bf16[5,8,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %taken = bf16[1,8,64]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,8,64}
}

%multiply (p.2: bf16[5,8,64], p.3: s32[], p.4: bf16[64,32]) -> bf16[8,32] {
  %p.2 = bf16[5,8,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.3 = s32[]{:T(128)S(6)} parameter(1)
  %p.4 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(2)
  %layer = bf16[1,8,64]{2,1,0:T(8,128)(2,1)} fusion(%p.2, %p.3), kind=kLoop, calls=%take_layer
  %flat = bf16[8,64]{1,0:T(8,128)(2,1)} bitcast(%layer)
  ROOT %product = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%flat, %p.4), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[5,8,64], bf16[16,32], bf16[8,32])) -> (s32[], bf16[5,8,64], bf16[16,32], bf16[8,32]) {
  %state = (s32[]{:T(128)}, bf16[5,8,64]{2,1,0}, bf16[16,32]{1,0}, bf16[8,32]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %stack = bf16[5,8,64]{2,1,0} get-tuple-element(%state), index=1
  %shard = bf16[16,32]{1,0} get-tuple-element(%state), index=2
  %whole = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%shard), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %out = bf16[8,32]{1,0:T(8,128)(2,1)S(1)} fusion(%stack, %i, %whole), kind=kOutput, calls=%multiply
  %sum.1 = bf16[8,32]{1,0:T(8,128)(2,1)S(1)} all-reduce(%out), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %again = (s32[]{:T(128)}, bf16[5,8,64]{2,1,0}, bf16[16,32]{1,0}, bf16[8,32]{1,0}) tuple(%next, %stack, %shard, %sum.1)
}

%condition (state.1: (s32[], bf16[5,8,64], bf16[16,32], bf16[8,32])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[5,8,64]{2,1,0}, bf16[16,32]{1,0}, bf16[8,32]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %layers = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %layers), direction=LT
}

ENTRY %main (a: bf16[5,8,64], b: bf16[16,32], c: bf16[8,32]) -> bf16[8,32] {
  %a = bf16[5,8,64]{2,1,0} parameter(0)
  %b = bf16[16,32]{1,0} parameter(1)
  %c = bf16[8,32]{1,0} parameter(2)
  %start = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, bf16[5,8,64]{2,1,0}, bf16[16,32]{1,0}, bf16[8,32]{1,0}) tuple(%start, %a, %b, %c)
  %loop = (s32[]{:T(128)}, bf16[5,8,64]{2,1,0}, bf16[16,32]{1,0}, bf16[8,32]{1,0}) while(%first), condition=%condition, body=%body
  ROOT %result = bf16[8,32]{1,0} get-tuple-element(%loop), index=3
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program():
    return hlo.Program(PROGRAM)


def test_hlo_loop_counts_as_often_as_its_condition_says(program):
    assert program.runs == {"main": 1, "body": 5}


def test_products_count_in_fusions_and_every_trip(program):
    assert program.matrix_flops() == 5 * 2 * 8 * 32 * 64


def test_collectives_with_their_whole_arrays_and_first_groups(program):
    assert program.collectives() == [
        hlo.Collective("all-gather", 64 * 32 * 2, (0, 2, 4, 6), 5, "bf16"),
        hlo.Collective("all-reduce", 8 * 32 * 2, (0, 1), 5, "bf16"),
    ]


def test_hlo_traffic_is_of_a_stacks_layer_and_not_of_on_chip_results(program):
    gather, product, count = 16 * 32 * 2 + 64 * 32 * 2, 8 * 64 * 2 + 64 * 32 * 2 + 4, 3 * 4
    assert program.hbm_bytes() == 5 * (gather + product + count)


def conv(image, kernel, result, rest):
    text = f"""ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {{
  %a = f32[{image}]{{0}} parameter(0)
  %b = f32[{kernel}]{{0}} parameter(1)
  ROOT %c = f32[{result}]{{0}} convolution(%a, %b), {rest}
}}
"""
    return hlo.Program(text).matrix_flops()


@pytest.mark.parametrize(
    ("image", "kernel", "result", "rest", "products"),
    [
        # (8, 64) x (64, 3, 16): padding everywhere but at one position
        (
            "8,64,1,1",
            "64,3,16,32",
            "8,3,16,32",
            "window={size=3x16 pad=2_2x15_15 rhs_reversal=1x1}, dim_labels=bf01_i01o->b01f",
            8 * 64 * 3 * 16 * 32,
        ),
        # batch dimensions 3 and 16 of a product (256, 64) x (64, 680)
        (
            "3,16,64,256",
            "3,16,64,680",
            "3,16,256,680",
            "window={size=3x16 stride=2x15 lhs_dilate=3x16}, dim_labels=01fb_01io->01bf",
            3 * 16 * 256 * 64 * 680,
        ),
        # a gradient of weights, which sums over 3 images
        (
            "3,680,64",
            "3,680,32",
            "64,32,1",
            "window={size=3}, dim_labels=0fb_0io->bf0",
            3 * 680 * 64 * 32,
        ),
        # a real convolution: two of the twelve rows of three taps fall outside at each end
        (
            "1,4,8",
            "3,8,5",
            "1,4,5",
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            (4 * 3 - 2) * 8 * 5,
        ),
    ],
)
def test_products_in_the_guise_of_convolutions(image, kernel, result, rest, products):
    assert conv(image, kernel, result, rest) == 2 * products
