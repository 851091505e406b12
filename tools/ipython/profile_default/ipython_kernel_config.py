"How saved outputs are made: IPYTHONDIR=tools/ipython jupyter execute --inplace NOTEBOOK"

c = get_config()  # noqa: F821
c.InlineBackend.figure_formats = {"retina"}  # twice the pixels, for dense screens
c.HistoryManager.enabled = False
