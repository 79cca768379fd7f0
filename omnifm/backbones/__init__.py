"""Networks, one file each.

A backbone turns a batch into tokens (b l q), and changed tokens into a prediction; see `omnifm.task.Backbone`.
"""
