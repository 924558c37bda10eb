"""Mask embedding (Li et al. 2023), the second method: a mask encoder and a decoder, learnt from pseudo-masks.

Nothing that learns correspondence (``branches``, ``losses``, ``data``, ``model``) imports this package. It meets the
training in ``loop``, its settings in ``config`` and its weights in ``checkpoint``.
"""
