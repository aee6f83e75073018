# SPDX-License-Identifier: Apache-2.0

def filtered(address: int, /) -> int:
    """
    Return the address of a print function that hands on to another, but in quiet threads.

    There, what is for debugging is dropped.  There are a few such functions, which are
    never given back; who comes too late gets his own address again.

    Args:
        address: of a ``libbpf_print_fn_t`` that lives as long as what is returned is used.
    """

def set_quiet(value: bool, /) -> bool:
    """
    Choose whether this thread is quiet; return whether it was.
    """
