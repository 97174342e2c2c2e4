"""What is measured beyond plain scores, all of it on the exported file: see `graft.evaluation.stage`."""
