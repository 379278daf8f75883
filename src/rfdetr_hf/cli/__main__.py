"""`python -m rfdetr_hf.cli`, the same as `rfdetr-hf`: `accelerate launch -m rfdetr_hf.cli fit ...`."""

import sys

from .main import main

sys.exit(main())
