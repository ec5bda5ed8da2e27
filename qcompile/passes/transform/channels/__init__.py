"""Channels that can only be removed together, and the removing of them.

    groups = channel_groups(model)                  search.py: every group of exchangeable channels (group.py)
    remove(model, {group: [3, 17]}, "name-of-pass")  remove.py: slice every tensor that they run through

How channels run through an operator lies in rules/, one file for a family of operators.
"""
