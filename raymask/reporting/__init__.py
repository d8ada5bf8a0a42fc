"""`raymask report`: one page about an output.

    tables, journal -> facts, pace, samples -> contents -> document

`facts` counts in the tables, `pace` reads the journal's times, `samples` chooses images and draws on them, `contents`
makes HTML of it all, and `document` is what puts them together.
"""
