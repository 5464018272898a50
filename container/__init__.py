if __name__ != "mnnpy.container":
    raise ImportError("import this package as mnnpy.container: the folder is only its place in the checkout")
