package config

import (
	"maps"
	"slices"
	"strings"
)

// suggestion proposes the setting that was perhaps meant, or lists all of them.
func suggestion(name string, fields map[string]int) string {
	if best := nearest(name, fields); best != "" {
		return best
	}
	return "; here can be: " + strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
}

// nearest proposes the name that was perhaps meant.
func nearest(name string, fields map[string]int) string {
	best, least := "", 1+len(name)/3
	for _, n := range slices.Sorted(maps.Keys(fields)) {
		if d := distance(name, n); d <= least {
			best, least = n, d-1
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// distance counts the insertions, removals and changes of single octets between two words (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := corner
			if a[i] != b[j] {
				cost++
			}
			corner = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
