"""Evaluation on annotated data sets, and without annotations: what ``vos-eval`` is made of.

layouts.py     where a data set keeps frames and annotations, and where its server wants masks
running.py     the runtime over a data set, resumable; settings.py: what may not change half-way
scoring.py     J, F, recall, decay per object; parsing.py: mIoU of parts; stability.py: T
statistics.py  recall, decay, paired tests, rank correlation
tables.py      terminal, CSV and JSON; html.py, svg.py: the report; comparing.py: runs side by side
cycle.py       forward-backward consistency, which needs no annotation but the first
"""
