"""The operator: reconciles TrainingRun objects into pods. Imports no torch."""
