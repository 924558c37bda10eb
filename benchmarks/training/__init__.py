"""Steps, curves and pseudo-masks of trainings."""
