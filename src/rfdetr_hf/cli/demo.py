"""`rfdetr-hf demo`: a page on which a model looks at pictures and at a webcam."""

from collections.abc import Sequence

from .. import DemoArguments, parse_arguments

DESCRIPTION = """Serve a page on which a model looks at pictures and at a webcam.

  rfdetr-hf demo outputs/mine/best                    http://127.0.0.1:7860
  rfdetr-hf demo outputs/mine/best --space me/demo    push it as a Space

The page has a slider for the confidence threshold, classes to hide, boxes,
masks or keypoints, and the time that the model takes. It needs the extra demo."""


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted, or push; returns the exit code."""
    places = {"model_name_or_path": "MODEL"}
    (args,) = parse_arguments((DemoArguments,), argv, "rfdetr-hf demo", DESCRIPTION, places)
    model = args.model_name_or_path
    if args.space is not None:
        from .. import load_model, push_space

        # A Space of a model that cannot be loaded helps nobody; of a variant's name it gives the repository.
        loaded = load_model(model)
        source = loaded.config._name_or_path or model
        print(f"{push_space(args.space, source, private=args.private)} is the demo of {source}")
        return 0
    from .. import build_demo

    build_demo(model, args.device, args.threshold).launch(
        server_name=args.host, server_port=args.port, share=args.share
    )
    return 0
