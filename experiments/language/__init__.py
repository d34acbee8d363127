"""Language models: trained on a long text, window by window, as in the papers.

The carry is carried over from window to window, and one training may take days.
"""
