/*
 * Compiled models, of trees or linear: check a blob, predict rows with it, predict one row of CSV.
 *
 * A blob is made by compiler.py. It is relocatable: all its places are counted from its beginning. Nothing here
 * allocates, waits or keeps state, so any number of threads and processes may use one blob at a time.
 *
 * Predictions are those of XGBoost, bit for bit: float32 sums that begin with the base score and add the trees in
 * order, or a linear model's features. Therefore this file is compiled without fused multiply-add (-ffp-contract=off) and calls the system's libm.
 */
#define _GNU_SOURCE /* strtod_l */
#include <locale.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0x3153454552544850ull /* "PHTREES1" in little-endian order */
#define LEAF 0x80000000u
#define DEFAULT_LEFT 0x40000000u
#define CATEGORICAL 0x20000000u
#define FEATURE 0x1fffffffu
#define OUT_OF_RANGE_CATEGORY 16777216.0f /* xgboost/src/common/categorical.h */
#define ROWS_AT_ONCE 64
#define MAX_CSV_FEATURES 4096
#define MAX_NUMBER_CHARS 63
#define EXACT_MANTISSA (1ull << 53)

enum { IDENTITY, SIGMOID, EXPONENTIAL, SOFTMAX, LARGEST, HINGE, EXPONENTIAL_OF_DOUBLE, TRANSFORMS };

typedef struct {
    uint64_t magic, bytes, checksum;
    uint32_t features, groups, trees, nodes, category_words, transform, is_weighted, is_linear;
    uint64_t reserved;
} header;

/* A linear model has no trees. Where these have their categories it has its weights, `groups` for each feature. */

typedef struct {
    uint32_t root, group;
    float weight;
} tree;

/* A split goes to node `next` or `next + 1`. Of a split by categories, `value` is the place of its set, as bits. */
typedef struct {
    float value;
    uint32_t feature, next;
} node;

typedef struct {
    const header *head;
    const float *starts;
    const tree *trees;
    const node *nodes;
    const uint32_t *categories; /* each set: how many words, then its words of 32 bits, the first category lowest */
} model;

static model parts_of(const void *blob)
{
    model m;
    m.head = blob;
    m.starts = (const float *)(m.head + 1);
    m.trees = (const tree *)(m.starts + m.head->groups);
    m.nodes = (const node *)(m.trees + m.head->trees);
    m.categories = (const uint32_t *)(m.nodes + m.head->nodes);
    return m;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Of all words of 32 bits after the header's first 24 bytes. Finds damage, not malice. */
uint64_t polyhost_trees_checksum(const void *blob, uint64_t bytes)
{
    const unsigned char *at = blob;
    uint64_t sum = bytes;
    for (uint64_t i = 24; i + 4 <= bytes; i += 4) {
        uint32_t word;
        memcpy(&word, at + i, 4);
        sum = (sum ^ word) * 0x9e3779b97f4a7c15ull;
        sum ^= sum >> 29;
    }
    return sum;
}

static int is_good_split(const model *m, const node *n, uint32_t index, uint32_t end)
{
    /* A child stands behind its parent, so that every way ends. */
    if (n->next <= index || n->next >= end - 1 || (n->feature & FEATURE) >= m->head->features)
        return 0;
    if (n->feature & CATEGORICAL) {
        uint32_t place = bits_of(n->value), words = m->head->category_words;
        return place < words && m->categories[place] < words - place;
    }
    return 1;
}

/* 0 if every place that a prediction can visit lies within the blob, else a number that says what is wrong. */
int polyhost_trees_check(const void *blob, uint64_t bytes)
{
    const header *head = blob;
    if (bytes < sizeof *head || head->magic != MAGIC)
        return 1;
    uint64_t due = sizeof *head + 4ull * head->groups + sizeof(tree) * (uint64_t)head->trees +
                   sizeof(node) * (uint64_t)head->nodes + 4ull * head->category_words;
    if (head->bytes != bytes || due != bytes)
        return 2;
    if (head->checksum != polyhost_trees_checksum(blob, bytes))
        return 3;
    if (!head->groups || !head->features || head->features > FEATURE || head->transform >= TRANSFORMS)
        return 4;
    if (head->is_linear)
        return head->is_linear == 1 && !head->trees && !head->nodes &&
                       head->category_words == (uint64_t)head->groups * head->features
                   ? 0
                   : 4;
    model m = parts_of(blob);
    for (uint32_t t = 0; t < head->trees; t++) {
        uint32_t root = m.trees[t].root, end = t + 1 < head->trees ? m.trees[t + 1].root : head->nodes;
        if (m.trees[t].group >= head->groups || root >= end || end > head->nodes)
            return 5;
        for (uint32_t i = root; i < end; i++)
            if (!(m.nodes[i].feature & LEAF) && !is_good_split(&m, &m.nodes[i], i, end))
                return 6;
    }
    return 0;
}

/* Whether the split by categories sends `value` to the left (xgboost/src/common/categorical.h, Decision). */
static int is_not_chosen(const uint32_t *set, float value)
{
    if (value < 0 || value >= OUT_OF_RANGE_CATEGORY)
        return 1;
    uint32_t category = (uint32_t)value, word = category >> 5;
    return word >= set[0] || !(set[1 + word] >> (category & 31) & 1);
}

static float leaf_of(const model *m, uint32_t at, const float *row)
{
    for (;;) {
        const node *n = &m->nodes[at];
        if (n->feature & LEAF)
            return n->value;
        float value = row[n->feature & FEATURE];
        int is_left;
        if (value != value)
            is_left = (n->feature & DEFAULT_LEFT) != 0;
        else if (n->feature & CATEGORICAL)
            is_left = is_not_chosen(m->categories + bits_of(n->value), value);
        else
            is_left = value < n->value;
        at = n->next + !is_left;
    }
}

/* xgboost/src/gbm/gblinear.cc, Pred: what is missing is passed over. */
static void add_features(const model *m, const float *row, float *out)
{
    uint32_t groups = m->head->groups, features = m->head->features;
    const float *weights = (const float *)(m->nodes + m->head->nodes);
    for (uint32_t g = 0; g < groups; g++) {
        float sum = out[g];
        for (uint32_t f = 0; f < features; f++)
            if (row[f] == row[f])
                sum += row[f] * weights[(uint64_t)f * groups + g];
        out[g] = sum;
    }
}

/* The objectives' own, from xgboost/src/common/math.h and src/objective. */
static void transform(const header *head, float *out)
{
    uint32_t groups = head->groups, best = 0;
    switch (head->transform) {
    case SIGMOID:
        for (uint32_t g = 0; g < groups; g++) {
            float x = -out[g] < 88.7f ? -out[g] : 88.7f;
            float denominator = expf(x) + 1.0f + 1e-16f;
            out[g] = 1.0f / denominator;
        }
        break;
    case EXPONENTIAL:
        for (uint32_t g = 0; g < groups; g++)
            out[g] = expf(out[g]);
        break;
    case EXPONENTIAL_OF_DOUBLE: /* as src/objective/aft_obj.cu calls it; the last bit differs from expf's */
        for (uint32_t g = 0; g < groups; g++)
            out[g] = (float)exp(out[g]);
        break;
    case HINGE:
        for (uint32_t g = 0; g < groups; g++)
            out[g] = out[g] > 0.0f ? 1.0f : 0.0f;
        break;
    case SOFTMAX: {
        float largest = out[0];
        double sum = 0.0;
        for (uint32_t g = 1; g < groups; g++)
            largest = fmaxf(out[g], largest);
        for (uint32_t g = 0; g < groups; g++) {
            out[g] = expf(out[g] - largest);
            sum += out[g];
        }
        for (uint32_t g = 0; g < groups; g++)
            out[g] /= (float)sum;
        break;
    }
    case LARGEST:
        for (uint32_t g = 1; g < groups; g++)
            if (out[g] > out[best])
                best = g;
        out[0] = (float)best;
        break;
    }
}

/*
 * Predict `count` rows of `features` float32 each; a missing value is NaN. `out` takes `groups` float32 for each
 * row; of LARGEST only the first of each row is an answer. The blob must have been checked.
 */
void polyhost_trees_predict(const void *blob, const float *rows, uint64_t count, float *out)
{
    model m = parts_of(blob);
    uint32_t groups = m.head->groups, features = m.head->features;
    /* Some rows at a time for each tree: it stays in the processor's cache. The order of a row's sums is the same. */
    for (uint64_t first = 0; first < count; first += ROWS_AT_ONCE) {
        uint64_t end = first + ROWS_AT_ONCE < count ? first + ROWS_AT_ONCE : count;
        for (uint64_t r = first; r < end; r++)
            memcpy(out + r * groups, m.starts, groups * sizeof *out);
        for (uint32_t t = 0; t < m.head->trees; t++) {
            const tree *one = &m.trees[t];
            for (uint64_t r = first; r < end; r++) {
                float leaf = leaf_of(&m, one->root, rows + r * features);
                out[r * groups + one->group] += m.head->is_weighted ? leaf * one->weight : leaf;
            }
        }
        for (uint64_t r = first; r < end && m.head->is_linear; r++)
            add_features(&m, rows + r * features, out + r * groups);
        for (uint64_t r = first; r < end; r++)
            transform(m.head, out + r * groups);
    }
}

static locale_t c_locale;

__attribute__((constructor)) static void make_locale(void)
{
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

/* Powers of ten that a double holds exactly. */
static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

static const char *digits_of(const char *at, const char *end, uint64_t *mantissa, int *count)
{
    const char *begin = at;
    for (; at < end && *at >= '0' && *at <= '9'; at++)
        if (*mantissa < EXACT_MANTISSA)
            *mantissa = *mantissa * 10 + (uint64_t)(*at - '0');
    *count = (int)(at - begin);
    return at;
}

/* Of a number that takes more than one exact operation; 0 where it is too long. Whatever the process's locale is. */
static int read_with_care(const char *begin, const char *end, double *value)
{
    char copy[MAX_NUMBER_CHARS + 1];
    if (end - begin > MAX_NUMBER_CHARS || !c_locale)
        return 0;
    memcpy(copy, begin, (size_t)(end - begin));
    copy[end - begin] = 0;
    *value = strtod_l(copy, NULL, c_locale);
    return 1;
}

/*
 * Read a plain decimal number, as the float32 of the nearest double: where it ends, or NULL if this is none.
 *
 * With a mantissa below 2^53 and a power of ten of at most 22 one operation is exact (Clinger 1990).
 */
static const char *number_of(const char *at, const char *end, float *value)
{
    const char *begin = at;
    int is_negative = 0, whole = 0, fraction = 0, exponent = 0;
    uint64_t mantissa = 0;
    double number;
    if (at < end && (*at == '-' || *at == '+'))
        is_negative = *at++ == '-';
    at = digits_of(at, end, &mantissa, &whole);
    if (at < end && *at == '.')
        at = digits_of(at + 1, end, &mantissa, &fraction);
    if (!whole && !fraction)
        return NULL;
    if (at < end && (*at == 'e' || *at == 'E')) {
        uint64_t power = 0;
        int is_small = 0, count;
        if (++at < end && (*at == '-' || *at == '+'))
            is_small = *at++ == '-';
        at = digits_of(at, end, &power, &count);
        if (!count)
            return NULL;
        exponent = power > 400 ? 400 : (int)power;
        exponent = is_small ? -exponent : exponent;
    }
    exponent -= fraction;
    if (mantissa < EXACT_MANTISSA && exponent >= -22 && exponent <= 22) {
        number = exponent < 0 ? (double)mantissa / POWERS[-exponent] : (double)mantissa * POWERS[exponent];
        number = is_negative ? -number : number;
    } else if (!read_with_care(begin, at, &number))
        return NULL;
    *value = (float)number;
    return isinf(*value) ? NULL : at;
}

/*
 * Predict one row of CSV whose fields are plain numbers, with at most one line end behind it.
 *
 * 1: `out` has the answer, `groups` float32. 0: not such a row, or not of this many features or a number that is
 * too long or beyond float32; the caller reads it another way.
 */
int polyhost_trees_predict_csv(const void *blob, const char *body, uint64_t bytes, float *out)
{
    float row[MAX_CSV_FEATURES];
    const header *head = blob;
    const char *at = body, *end = body + bytes;
    if (head->features > MAX_CSV_FEATURES)
        return 0;
    if (at < end && end[-1] == '\n')
        end--;
    for (uint32_t f = 0; f < head->features; f++) {
        if (f && (at >= end || *at++ != ','))
            return 0;
        at = number_of(at, end, &row[f]);
        if (!at)
            return 0;
    }
    if (at != end)
        return 0;
    polyhost_trees_predict(blob, row, 1, out);
    return 1;
}
