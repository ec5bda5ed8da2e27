"""Where a diagonal scale may move from one place of a graph to another, and the moving of it.

    sites, refused = find_sites(model)      search.py: values that describe each site (site.py)
    w1 = largest(model, site.divided, ...)  apply.py: max |c| for each scale
    apply(model, site, s, "name-of-pass")   apply.py: fold s > 0, shape [site.scales]; the function stays

What an operator does with a scale lies in rules/, one file for a family of operators.
"""
