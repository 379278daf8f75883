"""From rows of a data set to batches: order, view, recipe, pixels, collate."""
