"""Shared by all stages that run on Ray: the Ray session, the stage context and the task pool."""
