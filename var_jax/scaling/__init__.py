"""Power-law fits of tables of runs, with intervals, predictions, plots and reports."""
