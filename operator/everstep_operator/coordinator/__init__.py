"""The coordinator: a small service of one run that forms rounds, agrees on steps and spends the restart budget.

`run.py` is the state machine and holds no clock; `server.py` is the HTTP shell around it. Standard library only.
It may die at any time: its notes (memory.py) travel with every directive, and a successor asks the agents for them.
"""
