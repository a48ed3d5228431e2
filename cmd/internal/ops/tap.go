package ops

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"time"

	"postroad/queue"
)

// tap streams dialogues, each line as it comes, until the time that the client names, the client leaves, or the server stops.
func (s *Server) tap(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	wish := queue.TapWish{Site: query.Get("site"), Domain: query.Get("domain"), ID: queue.MessageID(query.Get("id"))}
	d, err := time.ParseDuration(query.Get("for"))
	if err != nil || d <= 0 || d > queue.MaxTap {
		refuse(w, fmt.Errorf("how long to listen: above 0, %s at most", queue.MaxTap))
		return
	}
	if wish == (queue.TapWish{}) {
		refuse(w, fmt.Errorf("say whose dialogues: of a site, a domain or a message"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), d)
	defer cancel()
	defer context.AfterFunc(s.live, cancel)()
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // the request is read; what is watched for is that the client leaves
	_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	_ = control.Flush() // so that the client knows that it is heard
	enc := json.NewEncoder(w)
	for line, err := range s.o.Queue.Tap(ctx, wish) {
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err != nil {
			s.o.Logger.Warn("tap broke off", "err", err)
			_ = enc.Encode(failure{err.Error()})
			return
		}
		if enc.Encode(line) != nil || control.Flush() != nil {
			return // the client is gone
		}
	}
	_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
}

// Tap yields lines of dialogues with hosts for so long, as they come.
func (c *Client) Tap(ctx context.Context, wish queue.TapWish, d time.Duration) iter.Seq2[queue.TapLine, error] {
	query := url.Values{"for": {d.String()}}
	for name, value := range map[string]string{"site": wish.Site, "domain": wish.Domain, "id": string(wish.ID)} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return lines[queue.TapLine](ctx, c, "/v1/tap", query)
}
