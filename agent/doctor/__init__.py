"""``edge-agent doctor``: looks at the box, the running agent and what the configuration names, and says what is wrong
with a remedy.

A module per subject: ``...Facts`` are what was seen, ``look`` sees them, ``judge`` makes findings of them and touches
nothing. agent/doctor/looks.py says which looks there are, agent/doctor/examination.py has them done beside each other.
Nothing is changed, written or sealed.
"""
