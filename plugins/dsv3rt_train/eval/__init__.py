"""Evaluation: how good a checkpoint is, and what a plan costs in quality."""
