package ops

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// routesDiffer is how long delivery processes may go by different routes: they look at their files by themselves.
const routesDiffer = time.Minute

// judgeRoutes finds delivery processes that go by other routes than most: a file that was changed on some machines only.
func (st *Status) judgeRoutes(now time.Time) {
	nodes := make(map[string][]string) // by routes
	var newest time.Time
	for _, n := range st.Nodes {
		routes, since, is := strings.Cut(n.Facts["routes"], " since ")
		at, err := time.Parse(time.RFC3339, since)
		if !is || err != nil || n.Draining || now.Sub(n.Seen) > silentAfter {
			continue
		}
		nodes[routes] = append(nodes[routes], n.Name)
		if at.After(newest) {
			newest = at
		}
	}
	if len(nodes) < 2 || now.Sub(newest) < routesDiffer {
		return
	}
	most := ""
	for routes, names := range nodes {
		if len(names) > len(nodes[most]) || len(names) == len(nodes[most]) && (most == "" || routes < most) {
			most = routes
		}
	}
	var others []string
	for routes, names := range nodes {
		if routes != most {
			others = append(others, names...)
		}
	}
	slices.Sort(others)
	st.attend(Attention{Part: "routes", Nodes: others, Since: newest,
		Text: fmt.Sprintf("delivery processes go by different routes: %s on %d of them, and others here", most, len(nodes[most])),
		Do:   "bring delivery.routes and delivery.routes_file to the same state on all machines; a file is taken within seconds"})
}
