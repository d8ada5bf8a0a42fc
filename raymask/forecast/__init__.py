"""How long a run would take: `config.py` has the options, `sample.py` chooses images, `forecast.py` measures them.

Importing this loads neither Ray nor torch.
"""
