"""What all stages share on Ray: the session, the stage context, the task pool."""
