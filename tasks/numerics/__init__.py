"""The mathematics, in torch and numpy: importable and testable without Prefect, a disk or a model hub."""
