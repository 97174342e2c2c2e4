"""WHAT: one module per stage of dvc.yaml, named like the stage."""
