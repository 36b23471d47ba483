"""Objectives compared: quality against what training and generation cost, with intervals.

Reads sweeps (their finished runs, with the `evaluation.json` that `var-jax evaluate --json` wrote
into a run's directory) and CSV, TSV, JSON or JSONL tables with the columns objective, run,
train_flops and any qualities (frechet_distance, precision, ...). Further columns: images_seen,
generation_flops, passes, seconds_per_image; frechet_distance_low and frechet_distance_high for
95 % intervals; seed, whose repetitions become a mean with Student's t interval; params.

Writes compare.json ({objective: {quality: [{run, x, value, ci95}]}}, x the training FLOPs),
laws.json, report.md and a PNG for each cost. Objectives with runs of four or more different
training FLOPs have a law of each quality, predicted at ten times the largest.

example:
  var-jax compare runs/next_scale runs/masked published.csv --out comparison
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SWEEP|TABLE",
        help="a sweep's directory, a run's workdir, or a table of runs; any number of them",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="directory for compare.json, laws.json, report.md and the plots",
    )
    parser.add_argument(
        "--qualities",
        nargs="+",
        metavar="NAME",
        help="compare these alone, such as frechet_distance (default: all)",
    )


def run(args: argparse.Namespace) -> int:
    from etils import epath

    from var_jax.comparison import (
        comparison_plots,
        comparison_report,
        equal_compute,
        quality_laws,
        read_sources,
    )

    comparison = read_sources.read(args.sources)
    if args.qualities:
        comparison = comparison.only(args.qualities)
    laws = quality_laws.fit(comparison)
    figures = comparison_plots.all_figures(comparison, laws)
    comparison_report.write(epath.Path(args.out), comparison, laws, figures, args.sources)
    for note in comparison.notes:
        print(note)
    for row, reason in comparison.dropped:
        print(f"left out {row}: {reason}")
    print("".join(f"{text}\n" for text in equal_compute.sentences(comparison)), end="")
    verdicts = [text for _, text in quality_laws.verdicts(comparison, laws)]
    print("\n".join(verdicts or [comparison_report.no_verdict(laws)]))
    names = f"compare.json, laws.json, report.md and {len(figures)} plots"
    print(
        f"{len(comparison.runs)} runs of {len(comparison.objectives)} objectives: {names}", end=""
    )
    print(f" in {args.out}")
    return 0
