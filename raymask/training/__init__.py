"""Training: annotations become rows, rows become batches, batches become a model folder.

    annotations -> rows -> (shuffle -> fetch -> decode -> augment) -> step -> checkpoint -> validate -> model folder

`trainer.py` is where a reader sees this whole. `loop.py` is what one worker does.
"""
