"""The averager: plan, stream, commit; verify and convert."""
