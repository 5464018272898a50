if __name__ != "mnnpy.decompose":
    raise ImportError("import this package as mnnpy.decompose: the folder is only its place in the checkout")
