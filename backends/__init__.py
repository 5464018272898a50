if __name__ != "mnnpy.backends":
    raise ImportError("import this package as mnnpy.backends: the folder is only its place in the checkout")
