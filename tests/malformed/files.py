"""Malformed images, masks, model directories, weights and sample sets."""

import numpy as np

from malformed.inputs import (
    PIXELS,
    Case,
    folder,
    huge_png,
    loop,
    model_json,
    model_weights,
    picture,
    published,
    samples,
    statistics,
    text,
    with_picture,
)

SAMPLE = "sample --model model --labels 1 --out out.png"
EDIT = "edit --model model --out out.png --image i.png"
CONVERT = "convert --scales 1,2,3x4 --norm-groups 4 --out out --tokenizer"
EVALUATE = "evaluate --samples s.npz --reference r.npz"
CASES = {
    # images, masks, boxes and labels
    "link_loop.png": Case(
        "an image that links to itself",
        f"{EDIT} --box 0,0,1,1",
        "i.png cannot be read: Too many levels",
        lambda: loop("i.png"),
    ),
    "directory.png": Case(
        "a directory named as an image",
        f"{EDIT} --box 0,0,1,1",
        "i.png cannot be read: Is a directory",
        lambda: folder("i.png"),
    ),
    "io_error": Case(
        "a file whose reading fails",
        "edit --model model --out out.png --box 0,0,1,1 --image /proc/self/mem",
        "/proc/self/mem cannot be read: Input/output error",
    ),
    "long_name": Case(
        "a name of 300 letters",
        f"edit --model model --out out.png --box 0,0,1,1 --image {'a' * 300}.png",
        "File name too long",
    ),
    "huge_png": Case(
        "a PNG of 2^31 - 1 pixels per side",
        "edit --model model --out out.png --box 0,0,1,1 --image p.png",
        "p.png does not decode: Image size",
        huge_png,
    ),
    "short_webp": Case(
        "a WebP that ends after its header",
        "edit --model model --out out.png --box 0,0,1,1 --image p.webp",
        "p.webp does not decode: not an image",
        text("p.webp", b"RIFF\x04\0\0\0WEBP"),
    ),
    "empty_gif": Case(
        "a GIF without a frame",
        "edit --model model --out out.png --box 0,0,1,1 --image p.gif",
        "p.gif does not decode: not an image",
        text("p.gif", b"GIF89a" + bytes(7) + b";"),
    ),
    "tiff_loop": Case(
        "a TIFF whose directory follows itself",
        "reconstruct --model model --out out.png --images p.tiff",
        "p.tiff does not decode: a TIFF whose samples",
        text("p.tiff", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    ),
    "mask_npy": Case(
        "an array as a mask",
        f"{EDIT} --mask m.npy",
        "m.npy does not decode: not an image",
        with_picture(lambda: np.save("m.npy", np.ones((6, 8)))),
    ),
    "mask_directory": Case(
        "a directory as a mask",
        f"{EDIT} --mask m",
        "m cannot be read: Is a directory",
        with_picture(lambda: folder("m")),
    ),
    "edit_over_itself": Case(
        "the image as the output",
        "edit --model model --box 0,0,1,1 --image i.png --out i.png",
        "--out i.png is the file of --image i.png",
        with_picture(),
    ),
    "edit_over_mask": Case(
        "the mask as the output",
        "edit --model model --image i.png --mask m.png --out m.png",
        "--out m.png is the file of --mask",
        with_picture(lambda: picture("m.png")),
    ),
    "reconstruct_over_itself": Case(
        "the image as the output",
        "reconstruct --model model --images i.png --out i.png",
        "--out i.png is the file of --images i.png",
        with_picture(),
    ),
    "box_empty": Case(
        "a box without numbers", f"{EDIT} --box=", "--box '' is not y0,x0,y1,x1", with_picture()
    ),
    "box_infinite": Case(
        "a box beyond every number",
        f"{EDIT} --box=-1e999,0,1,1",
        "--box '-1e999,0,1,1' is not within",
        with_picture(),
    ),
    "label_superscript": Case(
        "a superscript two as a label",
        "sample --model model --labels=² --out out.png",
        "'²' is not a class id",
    ),
    "label_half_range": Case(
        "a range without an end",
        "sample --model model --labels=1- --out out.png",
        "'1-' is not a class id",
    ),
    "grid_over_strip": Case(
        "one file for the grid and the strip",
        f"{SAMPLE} --strip ./out.png",
        "--strip ./out.png is the file of --out",
    ),
    # model directories and workdirs
    "model_loop": Case(
        "a model directory that links to itself",
        "sample --model m --labels 1 --out out.png",
        "no model directory m",
        lambda: loop("m"),
    ),
    "scales_null": Case(
        "model.json: scales of null",
        SAMPLE,
        "model.tokenizer.scales is None",
        model_json(tokenizer__scales=None),
    ),
    "phi_ratio_infinite": Case(
        "model.json: an infinite number",
        SAMPLE,
        "model.tokenizer.phi_ratio is inf",
        model_json(tokenizer__phi_ratio=float("inf")),
    ),
    "number_beyond_floats": Case(
        "model.json: a number of 400 digits",
        SAMPLE,
        "must be a finite number",
        model_json(transformer__mlp_ratio=10**400),
    ),
    "no_tokenizer": Case(
        "model.json without a tokenizer",
        SAMPLE,
        "model.tokenizer is missing",
        model_json(tokenizer=...),
    ),
    "format_true": Case(
        "model.json: true as its format", SAMPLE, "is of format True", model_json(format=True)
    ),
    "deep_json": Case(
        "model.json: 100,000 brackets",
        SAMPLE,
        "model/model.json does not read as JSON",
        text("model/model.json", '{"a":' + "[" * 100_000),
    ),
    "model_json_directory": Case(
        "a directory as model.json",
        SAMPLE,
        "model/model.json does not read as JSON",
        lambda: folder("model/model.json"),
    ),
    "class_names_mapping": Case(
        "data.json: class names by id",
        SAMPLE,
        "class_names in model/data.json",
        text("model/data.json", '{"class_names": {"0": "a"}}'),
    ),
    "integer_weights": Case(
        "a model's weights as int32",
        SAMPLE,
        "holds int32; weights are floats",
        model_weights(np.int32),
    ),
    "complex_weights": Case(
        "a model's weights as complex numbers", SAMPLE, "holds C64", model_weights(np.complex64)
    ),
    # published weights
    "pth_directory": Case(
        "a directory as .pth",
        f"{CONVERT} e.pth",
        "Is a directory: 'e.pth'",
        lambda: folder("e.pth"),
    ),
    "convert_integers": Case(
        "a state dict of int64",
        f"{CONVERT} t.safetensors",
        "holds int64; weights are floats",
        published(lambda a: {k: v.astype(np.int64) for k, v in a.items()}),
    ),
    "convert_texts": Case(
        "an .npz of texts",
        f"{CONVERT} t.npz",
        "weights are floats",
        published(lambda a: {k: v.astype("U8") for k, v in a.items()}, "t.npz"),
    ),
    "convert_flat": Case(
        "weights without their shape",
        f"{CONVERT} t.safetensors",
        "encoder.conv_in.weight has shape",
        published(lambda a: {k: v.ravel() for k, v in a.items()}),
    ),
    "convert_back_in_place": Case(
        "a model directory as the output of the way back",
        "convert --to-torch --model model --out model",
        "--out model is the file of --model",
    ),
    "convert_over_input": Case(
        "published files where the model goes",
        "convert --scales 1,2,3x4 --norm-groups 4 --tokenizer tokenizer.safetensors --out .",
        "is the file of --tokenizer",
        published(),
    ),
    "convert_both_ways": Case(
        "both directions at once",
        "convert --to-torch --model model --scales 1,2 --out out",
        "--scales is given with --to-torch",
    ),
    # merges
    "merge_missing": Case(
        "a tuned model that is not there",
        "merge --base model --tuned other --weight 0.5 --out out",
        "no model directory other",
    ),
    "merge_over_itself": Case(
        "the base as the output",
        "merge --base model --tuned model --weight 0.5 --out model",
        "--out model is the file of --",
    ),
    "merge_infinite": Case(
        "a weight of infinity",
        "merge --base model --tuned model --weight inf --out out",
        "--weight is inf; it must be a finite number",
    ),
    "merge_beyond_float32": Case(
        "a weight beyond the largest float32",
        "merge --base model --tuned model --weight 1e39 --out out",
        "--weight is 1e+39; it must be a finite number, and no larger than float32's",
    ),
    # sample sets and evaluation
    "samples_of_floats": Case(
        "samples of floats",
        EVALUATE,
        "arr_0 of s.npz is float64 of (8, 6, 8, 1)",
        samples(arr_0=PIXELS / 255),
    ),
    "samples_three_axes": Case(
        "samples without a channel axis",
        EVALUATE,
        "arr_0 of s.npz is uint8 of (8, 6, 8)",
        samples(arr_0=PIXELS[..., 0]),
    ),
    "samples_pickled": Case(
        "samples as Python objects",
        EVALUATE,
        "arr_0 of s.npz is object of (8, 6, 8, 1)",
        samples(arr_0=PIXELS.astype(object)),
    ),
    "samples_other_name": Case(
        "samples under another name",
        EVALUATE,
        "s.npz has no arr_0, but images",
        samples(images=PIXELS),
    ),
    "no_samples": Case(
        "a sample set of 0 images", EVALUATE, "s.npz is empty", samples(arr_0=PIXELS[:0])
    ),
    "statistics_without_sigma": Case(
        "a reference with a mean and no covariance",
        "evaluate --samples s.npz --reference f.npz",
        "f.npz has mu, but no sigma",
        statistics(mu=np.zeros(1280)),
    ),
    "statistics_of_nan": Case(
        "a reference whose mean is NaN",
        "evaluate --samples s.npz --reference f.npz",
        "mu of f.npz is not finite",
        statistics(mu=np.full(1280, np.nan), sigma=np.eye(1280)),
    ),
    "statistics_of_inception": Case(
        "published statistics beside features of another network",
        "evaluate --samples s.npz --reference f.npz",
        "mu of f.npz is of 2048 dimensions",
        statistics(mu=np.zeros(2048), sigma=np.eye(2048)),
    ),
    "statistics_as_samples": Case(
        "statistics as the samples",
        "evaluate --samples f.npz --reference s.npz",
        "f.npz holds the statistics mu, sigma",
        statistics(arr_0=PIXELS, mu=np.zeros(2048), sigma=np.eye(2048)),
    ),
    "statistics_to_reconstruct": Case(
        "statistics as the images of reconstructions",
        "evaluate --model model --reference f.npz",
        "f.npz holds the statistics mu, sigma",
        statistics(mu=np.zeros(2048), sigma=np.eye(2048)),
    ),
    "statistics_size": Case(
        "a size that is no number",
        "evaluate --reference s.npz --save-statistics f.npz --size big",
        "--size is 'big'",
        samples(arr_0=PIXELS),
    ),
    "graph_of_text": Case(
        "a text as the frozen graph",
        "evaluate --samples s.npz --reference r.npz --features inception --weights g.pb",
        "g.pb does not read as a frozen TensorFlow graph",
        lambda: (samples(arr_0=PIXELS)(), text("g.pb", "no graph")()),
    ),
    "report_over_samples": Case(
        "the samples as the report",
        f"{EVALUATE} --json s.npz",
        "--json s.npz is the file of --samples",
        samples(arr_0=PIXELS),
    ),
}
