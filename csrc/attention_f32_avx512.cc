#define RANVIER_T float
#define RANVIER_ATTENTION attention_avx512_f32
#include "attention_body.h"
