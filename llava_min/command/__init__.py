"""The command line: options, what is shown, the terminal's conversation, files of questions."""
