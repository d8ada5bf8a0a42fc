"""The whole of raymask on one small machine: draw pictures, train on them, segment, evaluate, query and look.

    python -m raymask.demo

`__main__.py` tells the story; `drawing`, `training` and `pictures` do what their names say. No network is used.
"""
