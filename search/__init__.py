if __name__ != "mnnpy.search":
    raise ImportError("import this package as mnnpy.search: the folder is only its place in the checkout")
