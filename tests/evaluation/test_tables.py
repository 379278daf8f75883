"""Scores as tables of text."""

from rfdetr_hf.evaluation.tables import aligned


def test_tables_align():
    assert aligned([["a", "bb"], ["long", "1"]]) == "a     bb\nlong   1"
