"""The processes that train one model together: a world of size one, or what MPI gives."""
