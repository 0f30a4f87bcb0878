"""Write a GGUF file anew in one format, by llama.cpp's own quantiser: SOURCE TARGET FORM.

Runs in the environment of llama.cpp. Every matrix gets the format, the embedding and the head too
(`pure`); a source that is quantised already is widened first.
"""

from __future__ import annotations

import ctypes
import os
import sys

import llama_cpp

FORMATS = {
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}


def main() -> None:
    source, target, form = sys.argv[1:]
    os.dup2(2, 1)  # the library prints a line a tensor
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FORMATS[form]
    params.allow_requantize = params.pure = True
    params.nthread = len(os.sched_getaffinity(0))
    code = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if code:
        raise SystemExit(f"llama_model_quantize: {code}")


if __name__ == "__main__":
    main()
