package queue

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
)

// Names of the streams and of what lies in them. Every job has six tokens after which nobody needs to look
// elsewhere: where it is, a detail of that place, domain, message, part and move.
//
//	MAIL    mail.<id>.m  mail.<id>.c.<n>  mail.<id>.done.<k>  mail.<id>.done.n<notification>, the same for dsn
//	JOBS    ready.<lane>.<domain>.<id>.<k>.<m>  sign.<lane>.<domain>.<id>.<k>.<m>
//	LATER   later.<class>.<domain>.<id>.<k>.<m> held.<why>.<domain>.<id>.<k>.<m>
//	EVENTS  events.<node>
//	SEEN    seen.<key>
//
// Each of the first three has bar.<stream>.<node> besides: the marker behind which a look is known to be fresh.
const (
	streamMail   = "MAIL"
	streamJobs   = "JOBS"
	streamLater  = "LATER"
	streamEvents = "EVENTS"
	streamSeen   = "SEEN"
	streamLimits = "KV_" + limitBucket
)

// Lanes is how many parts the ready jobs have, each with its own share of a worker's window. A domain is always in the same
// one: a hash of its name.
const Lanes = 8

func mailSubject(kind Kind, id MessageID) string { return string(kind) + "." + string(id) + ".m" }

func chunkSubject(kind Kind, id MessageID, n int) string {
	return string(kind) + "." + string(id) + ".c." + strconv.Itoa(n)
}

func doneSubject(kind Kind, id MessageID, part int) string {
	return string(kind) + "." + string(id) + ".done." + strconv.Itoa(part)
}

// notedSubject marks that a notification about a message is through, for as long as that message exists.
func notedSubject(maker MessageID, dsn MessageID) string {
	return string(KindMail) + "." + string(maker) + ".done.n" + string(dsn)
}

// allOfMail matches a mail and what lies beside it. It is no subset of what the signer's consumer filters, nor the other way
// round: a purge with it leaves that consumer alone (see erase).
func allOfMail(kind Kind, id MessageID) string { return string(kind) + "." + string(id) + ".>" }

func barSubject(stream, node string) string {
	return "bar." + strings.ToLower(stream) + "." + encodeToken(node)
}

// spot is where a job is: the first two tokens of its subject.
type spot struct {
	place  Place
	detail string // lane, delay class, or why it is held
}

func (s spot) stream() string {
	if s.place == PlaceLater || s.place == PlaceHeld {
		return streamLater
	}
	return streamJobs
}

// beats orders two jobs of one part that have the same move. Such a tie comes from two actors who moved the same job
// at the same time. A worker's deferral knows which recipients are through, so it wins over everything; an operator's
// hold wins over making ready. Of two lanes the usual one wins over the slow one, and of two delays or holds always the same: were neither to win,
// both would be worked on, or each be dropped for the other.
func (s spot) beats(other spot) bool {
	if s.place == other.place {
		return s.detail < other.detail
	}
	return placeRank[s.place] > placeRank[other.place]
}

var placeRank = map[Place]int{PlaceReady: 1, PlaceSign: 2, PlaceHeld: 3, PlaceLater: 4}

// ref names one job where it lies: everything that its subject says.
type ref struct {
	spot
	domain string
	id     MessageID
	part   int
	move   int
}

func (r ref) subject() string {
	return strings.Join([]string{string(r.place), encodeToken(r.detail), encodeToken(r.domain), string(r.id),
		strconv.Itoa(r.part), strconv.Itoa(r.move)}, ".")
}

// supersedes reports that r is the job that lives when both are there.
func (r ref) supersedes(other ref) bool {
	if r.move != other.move {
		return r.move > other.move
	}
	return r.beats(other.spot)
}

func parseRef(subject string) (ref, error) {
	t := strings.Split(subject, ".")
	if len(t) != 6 {
		return ref{}, fmt.Errorf("subject %q has %d tokens, a job has 6", subject, len(t))
	}
	r := ref{spot: spot{place: Place(t[0])}, id: MessageID(t[3])}
	if placeRank[r.place] == 0 {
		return ref{}, fmt.Errorf("subject %q: %q is no place of a job", subject, t[0])
	}
	var err error
	if r.detail, err = decodeToken(t[1]); err != nil {
		return ref{}, fmt.Errorf("subject %q: %w", subject, err)
	}
	if r.domain, err = decodeToken(t[2]); err != nil {
		return ref{}, fmt.Errorf("subject %q: %w", subject, err)
	}
	if _, err = r.id.parse(); err != nil {
		return ref{}, fmt.Errorf("subject %q: %w", subject, err)
	}
	if r.part, err = strconv.Atoi(t[4]); err != nil {
		return ref{}, fmt.Errorf("subject %q: part: %w", subject, err)
	}
	if r.move, err = strconv.Atoi(t[5]); err != nil {
		return ref{}, fmt.Errorf("subject %q: move: %w", subject, err)
	}
	return r, nil
}

func partFilter(domain string, id MessageID, part int) string {
	return "*.*." + encodeToken(domain) + "." + string(id) + "." + strconv.Itoa(part) + ".*"
}

func laneHash(domain string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(domain))
	return h.Sum32()
}

func laneOf(domain string) string { return strconv.Itoa(int(laneHash(domain) % Lanes)) }

func signSpot(domain string) spot { return spot{PlaceSign, laneOf(domain)} }
func laterSpot(c Class) spot      { return spot{PlaceLater, string(c)} }
func heldSpot(why string) spot    { return spot{PlaceHeld, why} }

const plainToken = "abcdefghijklmnopqrstuvwxyz0123456789-"

// encodeToken makes one subject token of a text: dots become underscores, what a token cannot hold becomes =xx.
func encodeToken(s string) string {
	if s == "" {
		return "="
	}
	plain := true
	for i := 0; i < len(s); i++ {
		if s[i] != '.' && strings.IndexByte(plainToken, s[i]) < 0 {
			plain = false
			break
		}
	}
	if plain {
		return strings.ReplaceAll(s, ".", "_")
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '.':
			b.WriteByte('_')
		case strings.IndexByte(plainToken, c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "=%02x", c)
		}
	}
	return b.String()
}

func decodeToken(t string) (string, error) {
	if t == "=" {
		return "", nil
	}
	if strings.IndexByte(t, '=') < 0 {
		return strings.ReplaceAll(t, "_", "."), nil
	}
	var b strings.Builder
	for i := 0; i < len(t); i++ {
		switch t[i] {
		case '_':
			b.WriteByte('.')
		case '=':
			if i+2 >= len(t) {
				return "", fmt.Errorf("token %q ends inside an escape", t)
			}
			c, err := strconv.ParseUint(t[i+1:i+3], 16, 8)
			if err != nil {
				return "", fmt.Errorf("token %q: %w", t, err)
			}
			b.WriteByte(byte(c))
			i += 2
		default:
			b.WriteByte(t[i])
		}
	}
	return b.String(), nil
}
