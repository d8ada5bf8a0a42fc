"""An output in the browser: a grid of its images with masks over them, filters, details, comparisons.

    tables -> filters -> collection -> answers -> server -> page/
    manifest -> pictures ----------------^          comparison: two sides matched

`serving.py` opens all of it and serves until it is stopped. The page is plain HTML, CSS and JavaScript in `page/`.
"""
