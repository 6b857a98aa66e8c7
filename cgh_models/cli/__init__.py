"""The command line `cgh`: one file for each group of commands.

`main` picks the command and turns errors into one line and an exit code; `pretrain`, `evaluate` and
`weights` hold the commands; `flags` makes flags of a config's fields; `parse_errors` makes one
sentence of words that cannot be parsed; `demo` walks through all of it on packaged photographs.
"""
