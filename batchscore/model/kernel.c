/* The sums of an ensemble's trees, for many rows at once.
 *
 * model.h says how large everything is and which way of the two is taken, and the files beside it hold the trees.
 * Nothing is kept between calls, so threads may call at once. Every sum is made in the order of the trees, one rounding
 * each, as the libraries make theirs: what they give is what this gives, to the last bit.
 */
#include <math.h>
#include <stdint.h>

#include "model.h"

#define INCLUDED(name) __asm__(".section .rodata\n.balign 64\n" #name ":\n.incbin \"" #name "\"\n.previous\n")
#define FROM(type, name) INCLUDED(name); extern const type name[] __attribute__((visibility("hidden")))
#define SHOWN __attribute__((visibility("default")))

/* What batchscore compares with the estimator before it calls anything. */
SHOWN const int32_t batchscore_shape[] = {1, FEATURES, OUTPUTS, sizeof(REAL), sizeof(SUM)};

FROM(SUM, begin);
SHOWN const SUM *const batchscore_begin = begin;

/* A feature is one of numbers, or of `kinds` categories; one that is none of these comes behind them, then a missing. */
FROM(int32_t, kinds);

/* LightGBM takes what is as small as this for 0. */
static REAL given(REAL value) { return TINY > 0 && value >= (REAL)-TINY && value <= (REAL)TINY ? 0 : value; }

static int32_t code(REAL value, int32_t count) {
  if (value != value) return count + 1;
  /* LightGBM cuts off what is behind the point before it looks at the sign. */
  if (!((TINY > 0 ? value > -1 : value >= 0) && value < 2147483648.0)) return count;
  int32_t category = (int32_t)value & CODES;
  return category < count ? category : count;
}

static void add(SUM *sums, int32_t tree, const SUM *leaf) {
  if (WIDTH == 1) {
    sums[OUTPUTS == 1 ? 0 : tree % OUTPUTS] += leaf[0];
  } else {
    for (int32_t k = 0; k < WIDTH; ++k) sums[k] += leaf[k];
  }
}

#ifdef MASKS
/* Small trees. Each leaf of a tree is a bit, the leftmost the lowest. Whatever value a feature has, it rules out the
 * leaves left of every split that it fails: one word a tree, looked up by where the value lies among all limits of that
 * feature. The lowest bit that no feature rules out is the leaf that the row comes to (Lucchese et al. 2015,
 * "QuickScorer: A Fast Algorithm to Rank Documents with Additive Ensembles of Regression Trees"). A tree of more leaves
 * than a word has bits takes several.
 */
typedef WORD words __attribute__((vector_size(64)));
enum { TOGETHER = 64 / sizeof(WORD) / WORDS };

FROM(REAL, limits);
FROM(int32_t, first_limit);
FROM(int32_t, first_place);
FROM(words, left_over);
FROM(int32_t, used);
FROM(int32_t, first_used);
FROM(SUM, leaves);

static void place(int32_t feature, const REAL *rows, int64_t count, int32_t *places) {
  const REAL *limit = limits + first_limit[feature];
  int32_t size = first_limit[feature + 1] - first_limit[feature], first = first_place[feature];
  REAL values[ROWS];
  for (int64_t i = 0; i < count; ++i) values[i] = given(rows[i * FEATURES + feature]);
  if (kinds[feature]) {
    for (int64_t i = 0; i < count; ++i) places[i] = first + code(values[i], kinds[feature]);
    return;
  }
  /* For all rows step by step, so that none waits for its own last step. */
  for (int64_t i = 0; i < count; ++i) places[i] = 0;
  for (int32_t left = size; left > 1;) {
    int32_t half = left >> 1;
    for (int64_t i = 0; i < count; ++i) places[i] += half & -(limit[places[i] + half - 1] < values[i]);
    left -= half;
  }
  for (int64_t i = 0; i < count; ++i) {
    int32_t above = size ? places[i] + (limit[places[i]] < values[i]) : 0;
    places[i] = first + (values[i] != values[i] ? size + 1 : above);
  }
}

static int32_t lowest(const WORD *rest) {
  int32_t w = 0;
  while (w < WORDS - 1 && !rest[w]) ++w;
  return 64 * w + (sizeof(WORD) == 8 ? __builtin_ctzll(rest[w]) : __builtin_ctz(rest[w]));
}

static void add_trees(const REAL *rows, int64_t count, SUM *sums) {
  int32_t places[FEATURES][ROWS];
  for (int32_t feature = 0; feature < FEATURES; ++feature) place(feature, rows, count, places[feature]);
  for (int32_t block = 0; block * TOGETHER < TREES; ++block) {
    const words *table = left_over + (int64_t)block * PLACES;
    int32_t first = block * TOGETHER, trees = TREES - first < TOGETHER ? TREES - first : TOGETHER;
    for (int64_t i = 0; i < count; ++i) {
      words rest = ~(words){0};
      for (int32_t u = first_used[block]; u < first_used[block + 1]; ++u) rest &= table[places[used[u]][i]];
      WORD each[TOGETHER * WORDS] __attribute__((aligned(64)));
      *(words *)each = rest;
      for (int32_t t = 0; t < trees; ++t) {
        const SUM *tree = leaves + (int64_t)(first + t) * LEAVES * WIDTH;
        add(sums + i * OUTPUTS, first + t, tree + lowest(each + t * WORDS) * WIDTH);
      }
    }
  }
}
#else
/* Large trees. Children lie side by side and a leaf is its own child, so that a step is a comparison and no branch, and
 * some rows go down a tree together. A value that is missing is below every limit where it goes left.
 */
enum { TOGETHER = 8 };
struct node { REAL limit; int32_t left, input; };
struct tree { int64_t root; int32_t depth, categorical; };

FROM(struct node, nodes);
FROM(struct tree, trees);
FROM(SUM, leaves);
FROM(int32_t, first_category);
FROM(uint32_t, goes_left);

static void add_trees(const REAL *rows, int64_t count, SUM *sums) {
  REAL values[ROWS][2 * FEATURES];
  int32_t codes[CATEGORICAL ? ROWS : 1][CATEGORICAL ? FEATURES : 1];
  for (int64_t i = 0; i < ROWS; ++i) {
    for (int32_t j = 0; j < FEATURES; ++j) {
      REAL value = i < count ? given(rows[i * FEATURES + j]) : 0;
      values[i][2 * j] = value != value ? (REAL)-INFINITY : value;
      values[i][2 * j + 1] = value;
      if (CATEGORICAL) codes[i][j] = code(value, kinds[j]);
    }
  }
  for (int32_t t = 0; t < TREES; ++t) {
    const struct node *root = nodes + trees[t].root;
    for (int64_t i = 0; i < count; i += TOGETHER) {
      int32_t at[TOGETHER] = {0};
      if (CATEGORICAL && trees[t].categorical) {
        for (int32_t d = 0; d < trees[t].depth; ++d) {
          for (int32_t r = 0; r < TOGETHER; ++r) {
            struct node node = root[at[r]];
            int32_t which = codes[i + r][node.input >> 1], first = first_category[trees[t].root + at[r]];
            int32_t category_left = goes_left[(first + which) >> 5] >> ((first + which) & 31) & 1;
            int32_t right = first ? !category_left : !(values[i + r][node.input] <= node.limit);
            at[r] = node.left + right;
          }
        }
      } else {
        for (int32_t d = 0; d < trees[t].depth; ++d) {
          for (int32_t r = 0; r < TOGETHER; ++r) {
            struct node node = root[at[r]];
            at[r] = node.left + !(values[i + r][node.input] <= node.limit);
          }
        }
      }
      for (int32_t r = 0; r < TOGETHER && i + r < count; ++r) {
        add(sums + (i + r) * OUTPUTS, t, leaves + (trees[t].root + at[r]) * WIDTH);
      }
    }
  }
}
#endif

#if SUM_IS_FLOAT
#define EXP expf
#else
#define EXP exp
#endif

/* As XGBoost and LightGBM make probabilities of a row's sums; scikit-learn's own code does so for its estimators. */
static void link_row(SUM *sums) {
#if defined SIGMOID
  SUM x = (SUM)-SIGMOID * sums[0];
  if (SUM_IS_FLOAT && x > (SUM)88.7) x = (SUM)88.7;
  sums[0] = (SUM)1 / ((SUM)1 + EXP(x));
#elif defined SOFTMAX
  SUM most = sums[0];
  for (int32_t k = 1; k < OUTPUTS; ++k) most = sums[k] > most ? sums[k] : most;
  double whole = 0;
  for (int32_t k = 0; k < OUTPUTS; ++k) whole += sums[k] = EXP(sums[k] - most);
  for (int32_t k = 0; k < OUTPUTS; ++k) sums[k] /= (SUM)whole;
#else
  (void)sums;
#endif
}

/* Rows of FEATURES numbers; sums of OUTPUTS, which hold what they begin with. */
SHOWN void batchscore_add(const REAL *rows, int64_t count, SUM *sums) {
  for (int64_t i = 0; i < count; i += ROWS) {
    add_trees(rows + i * FEATURES, count - i < ROWS ? count - i : ROWS, sums + i * OUTPUTS);
  }
  for (int64_t i = 0; i < count; ++i) link_row(sums + i * OUTPUTS);
}
