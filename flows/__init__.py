"""WHEN: Prefect flows over the graph that dvc.yaml describes."""
