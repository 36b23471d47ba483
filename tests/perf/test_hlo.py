"""Programs as XLA prints them: loops, products, collectives and memory traffic, counted by hand."""

from pathlib import Path

import pytest

from var_jax.perf import hlo

# As the TPU compiler prints them: a scan over 5 layers whose body gathers a weight, multiplies, and
# reduces; arrays with S(1) lie on the chip.
PROGRAM = (Path(__file__).parent / "program.hlo").read_text()


@pytest.fixture(scope="module")
def program():
    return hlo.Program(PROGRAM)


def test_hlo_loop_counts_as_often_as_its_condition_says(program):
    """The body of the loop counts five times, which is the bound in its condition, and the main
    computation once."""
    assert program.runs == {"main": 1, "body": 5}


def test_matrix_flops_count_fusions_and_every_trip(program):
    """The FLOPs are those of five trips of one product of 8 x 32 x 64, which lies within a
    fusion."""
    assert program.matrix_flops() == 5 * 2 * 8 * 32 * 64


def test_collectives_have_their_whole_arrays_and_first_groups(program):
    """Each collective has the bytes of its whole array, its first group of devices and the five
    runs of the loop that it is in, as counted by hand."""
    assert program.collectives() == [
        hlo.Collective("all-gather", 64 * 32 * 2, (0, 2, 4, 6), 5, "bf16"),
        hlo.Collective("all-reduce", 8 * 32 * 2, (0, 1), 5, "bf16"),
    ]


def test_hlo_traffic_is_of_a_stacks_layer_and_not_of_on_chip_results(program):
    """Per trip one layer of the stack is read and the results are written; what stays on the chip
    is left out."""
    gather, product, count = 16 * 32 * 2 + 64 * 32 * 2, 8 * 64 * 2 + 64 * 32 * 2 + 4, 3 * 4
    assert program.hbm_bytes() == 5 * (gather + product + count)


def test_hlo_traffic_of_a_layer_in_another_tiling_is_that_of_the_layer():
    """Before a fusion takes a layer of an int8 stack, the TPU compiler turns the whole stack to
    another tiling, in a fusion of its own; only the layer is read."""
    text = """%relaid (s: s8[5,32,64]) -> s8[5,32,64] {
  %s = s8[5,32,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %c = s8[5,32,64]{2,1,0:T(8,128)(4,1)} copy(%s)
}

%inside (stack: s8[5,32,64], i: s32[]) -> bf16[1,32,64] {
  %stack = s8[5,32,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  %tiled = s8[5,32,64]{2,1,0:T(8,128)(4,1)} fusion(%stack), kind=kLoop, calls=%relaid
  %i = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %layer = s8[1,32,64]{2,1,0:T(8,128)(4,1)} dynamic-slice(%tiled, %i, %zero, %zero)
  ROOT %floats = bf16[1,32,64]{2,1,0:T(8,128)(2,1)} convert(%layer)
}

ENTRY %main (stack: s8[5,32,64], i: s32[]) -> bf16[1,32,64] {
  %stack = s8[5,32,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  ROOT %f = bf16[1,32,64]{2,1,0:T(8,128)(2,1)} fusion(%stack, %i), kind=kLoop, calls=%inside
}
"""
    assert hlo.Program(text).hbm_bytes() == 32 * 64 + 2 * 32 * 64


def test_hlo_traffic_of_a_copied_array_is_all_of_it():
    """A fusion that does nothing but copy reads and writes the whole array."""
    text = """%copied (s: s8[5,32]) -> s8[5,32] {
  %s = s8[5,32]{1,0} parameter(0)
  ROOT %c = s8[5,32]{0,1} copy(%s)
}

ENTRY %main (s: s8[5,32]) -> s8[5,32] {
  %s = s8[5,32]{1,0} parameter(0)
  ROOT %f = s8[5,32]{0,1} fusion(%s), kind=kLoop, calls=%copied
}
"""
    assert hlo.Program(text).hbm_bytes() == 2 * 5 * 32


def test_collectives_that_run_beside_the_program_count():
    """The sparse cores of newer chips run a collective as a call of its own, which the program only
    starts and awaits; its bytes cross the network all the same."""
    text = """%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%called (g: bf16[64,32]) -> bf16[16,32] {
  %g = bf16[64,32]{1,0} parameter(0)
  ROOT %r = bf16[16,32]{1,0} reduce-scatter(%g), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (g: bf16[64,32]) -> bf16[16,32] {
  %g = bf16[64,32]{1,0} parameter(0)
  %start = ((bf16[64,32]{1,0}), bf16[16,32]{1,0}) call-start(%g), to_apply=%called
  ROOT %done = bf16[16,32]{1,0} call-done(%start)
}
"""
    program = hlo.Program(text)
    expected = hlo.Collective("reduce-scatter", 64 * 32 * 2, (0, 1, 2, 3), 1, "bf16")
    assert program.collectives() == [expected]
    assert program.hbm_bytes() == (64 + 16) * 32 * 2


def test_estimated_cycles_are_those_of_operations_and_of_every_trip():
    """A fusion's estimate is for all of it, a loop's is that of its body for each of its trips, and
    a program of another compiler has none."""
    estimate = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
    trips = 'backend_config={"known_trip_count":{"n":"3"}}'
    text = f"""%inside (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %n = f32[8]{{0}} negate(%x), {estimate % 1000}
}}

%body (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %f = f32[8]{{0}} fusion(%x), kind=kLoop, calls=%inside, {estimate % 70}
}}

%goes_on (x: f32[8]) -> pred[] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %yes = pred[] constant(true)
}}

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  %w = f32[8]{{0}} while(%a), condition=%goes_on, body=%body, {trips}, {estimate % 9}
  ROOT %c = f32[8]{{0}} copy(%w), {estimate % 5}
}}
"""
    assert hlo.Program(text).estimated_cycles() == 3 * 70 + 5
    assert hlo.Program(PROGRAM).estimated_cycles() == 0


def test_collectives_that_go_on_in_several_fusions_count_once():
    """The TPU compiler starts a gather in one fusion, goes on with it in those of other operations
    and ends it in another; each has the gather with its channel. One without a chain stays apart,
    and the chain counts in every trip of its loop."""
    piece = (
        "all-gather(%p), channel_id={}, replica_groups={{{{0,1}}}}, dimensions={{0}}, "
        'frontend_attributes={{chain_id="1"}}'
    )
    fusions = "".join(
        f"""%fused.{i} (p: bf16[4,8]) -> bf16[8,8] {{
  %p = bf16[4,8]{{1,0}} parameter(0)
  ROOT %g = bf16[8,8]{{1,0}} {piece.format(7)}
}}
"""
        for i in range(3)
    )
    calls = "".join(
        f"  %f.{i} = bf16[8,8]{{1,0}} fusion(%a), kind=kCustom, calls=%fused.{i}\n"
        for i in range(3)
    )
    trips = 'backend_config={"known_trip_count":{"n":"5"}}'
    text = f"""{fusions}%body (a: bf16[4,8]) -> bf16[4,8] {{
  %a = bf16[4,8]{{1,0}} parameter(0)
{calls}  %o = bf16[8,8]{{1,0}} all-gather(%a), channel_id=7, replica_groups={{{{0,1}}}}
  ROOT %s = bf16[4,8]{{1,0}} slice(%o), slice={{[0:4], [0:8]}}
}}

%cond (a: bf16[4,8]) -> pred[] {{
  %a = bf16[4,8]{{1,0}} parameter(0)
  ROOT %t = pred[] constant(true)
}}

ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {{
  %a = bf16[4,8]{{1,0}} parameter(0)
  ROOT %w = bf16[4,8]{{1,0}} while(%a), condition=%cond, body=%body, {trips}
}}
"""
    collectives = hlo.Program(text).collectives()
    assert [(one.kind, one.bytes, one.times) for one in collectives] == 2 * [("all-gather", 128, 5)]
    # A chain that begins before its loop counts in every trip as well
    ahead = text.replace("  ROOT %w", calls.splitlines()[0].replace("%f.0", "%f") + "\n  ROOT %w")
    assert sorted(one.times for one in hlo.Program(ahead).collectives()) == [5, 5]


@pytest.mark.parametrize("images", [2, 1])
def test_matrix_flops_of_fused_attention(images):
    """The kernel of 3 heads, 256 queries, 512 keys and 64 channels has two products of each query
    and key forward, of which half lie in computed blocks. One image has no axis of images, and the
    integers that say which blocks are computed have as many axes as its queries."""
    batch = "2," * (images > 1)
    text = f"""ENTRY %main (q: f32[1], k: f32[1], m: f32[1]) -> f32[1] {{
  %m = s32[3,2,4]{{2,1,0}} parameter(0)
  %q = bf16[{batch}3,256,64]{{2,1,0}} parameter(1)
  %k = bf16[{batch}3,512,64]{{2,1,0}} parameter(2)
  ROOT %splash_mha_fwd.1 = bf16[{batch}3,256,64]{{2,1,0}} custom-call(%m, %q, %k, %k)
}}
"""
    expected = 2 * 2 * images * 3 * 256 * 512 * 64 / 2
    assert hlo.Program(text).matrix_flops(kernel_share=0.5) == expected


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
def test_matrix_flops_of_products_written_as_convolutions(image, kernel, result, rest, products):
    """The compiler writes products of several batch dimensions as convolutions; padding is not
    counted."""
    assert conv(image, kernel, result, rest) == 2 * products
