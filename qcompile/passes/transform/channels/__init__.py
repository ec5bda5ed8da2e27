"""Channels that can only be removed together, and the removing of them.

    groups = channel_groups(model)                  search.py: every group of exchangeable channels (group.py)
    remove(model, {group: [3, 17]}, "name-of-pass")  remove.py: slice every tensor that they run through

    branches = residual_branches(model)             branches.py: whole blocks
    remove_branches(model, branches[2:3], "name-of-pass")

How channels run through an operator lies in rules/, one file for a family of operators.
"""
