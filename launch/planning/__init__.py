"""Parts of `plan.py`: the legal layouts, their order, the printed plan."""
