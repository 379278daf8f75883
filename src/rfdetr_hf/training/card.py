"""The model card of a run."""

from collections.abc import Mapping

from datasets import Dataset

from ..arguments.training import RFDETRTrainingArguments
from ..hub.model_card import CardFacts, hub_dataset_id, hub_model_id
from .checkpoint.run_directory import RunDirectory
from .checkpoint.weights import Weights
from .meters import is_timing
from .state import RunState


def card_facts(
    args: RFDETRTrainingArguments,
    directory: RunDirectory,
    repo_id: str,
    weights: Weights,
    dataset: Dataset | None,
    state: RunState,
    step: int | None,
    metrics: Mapping[str, float] | None = None,
) -> CardFacts:
    """What the card of the present weights says.

    Args:
        args: of the run.
        directory: of the run.
        repo_id: of the Hub.
        weights: of the run.
        dataset: of the training.
        state: of the run.
        step: that the weights are of.
        metrics: of the weights; default: those that were logged at `step`.
    """
    history, config = state.log_history, weights.config
    if metrics is None:
        metrics = {}
        for row in history:
            if row["step"] == step and any(n.startswith("eval_") and is_timing(n, row) for n in row):
                metrics = metrics | row  # of each evaluation set
        metrics = metrics | next((row for row in reversed(history) if "test_runtime" in row), {})
    on_hub = args.push_to_hub or args.hub_model_id is not None
    return CardFacts(
        name=repo_id.rpartition("/")[2] if on_hub else directory.root.resolve().name,
        model_class=weights.model_class.__name__,
        config=config,
        parameters=weights.num_parameters,
        metrics=metrics,
        training_arguments=args.to_dict(),
        log_history=list(history),
        dataset=hub_dataset_id(dataset),
        base_model=hub_model_id(config._name_or_path),
        license=args.hub_license,
        model_id=repo_id if on_hub else "PATH_OR_ID",
    )
