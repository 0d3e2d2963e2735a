"""Published data sets, converted to nnU-Net's raw format.

``base.py`` says what a data set declares, each data set has a file of its own, and ``table.py`` lists them all.
``conversion.py`` converts any of them and knows the base class only. The other files hold what these share: options,
cases, files of a source, 3-D volumes, 2-D pictures, splits and worker processes.
"""
