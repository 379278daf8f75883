"""What a run of four steps tells its card."""

HISTORY = [
    {"step": 1, "epoch": 0.5, "loss": 9.0},
    {"step": 2, "epoch": 1.0, "loss": 8.0},
    {"step": 2, "epoch": 1.0, "eval_map": 0.1, "eval_map_50": 0.2, "eval_map_75": 0.05},
    {"step": 4, "epoch": 2.0, "eval_map": 0.3, "eval_map_50": 0.5, "eval_map_75": 0.25},
]
METRICS = {
    "eval_map": 0.3,
    "eval_raw_map": 0.2,
    "eval_map_small": -1.0,
    "eval_map_50": 0.5,
    "eval_runtime": 3.0,
    "epoch": 2.0,
}
