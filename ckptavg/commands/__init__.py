"""The functions behind the commands: what a command takes, its function takes."""
